"""`make bench`: this engine beside stock nbgrader and otter-grader, in time and under attack."""
