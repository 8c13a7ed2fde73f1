"""A class of students: its folder, its submissions graded in bulk, its gradebook."""
