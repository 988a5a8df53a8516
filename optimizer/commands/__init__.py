"""What does the command line offer?"""
