"""What is evaluated and how it is judged: pairs, templates, searches, the verdict."""
