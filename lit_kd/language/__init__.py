"""Text tasks: what their files hold, how answers are read off and scored."""
