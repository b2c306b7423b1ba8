"""One page that compares encoders, in one file of HTML: what is measured, what is drawn, what it is written by."""
