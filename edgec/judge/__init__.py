"""Judging finished artifacts: compare with a reference, evaluate, measure speed."""
