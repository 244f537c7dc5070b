"""Installed packages on disk: installed, tuned, switched, rolled back."""
