"""The world of the embedded models: its scenes, words and pictures, and the code that tells from pixels what a picture
shows."""
