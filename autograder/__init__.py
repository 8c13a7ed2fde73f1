"""What instructors run: building the notebooks that students get, and grading."""
