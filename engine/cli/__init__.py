"""What the user may say: options, what each means, and files of options."""
