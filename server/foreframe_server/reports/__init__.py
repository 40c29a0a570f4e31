"""What a bench found, with where it was found, as JSON, Markdown and one self-contained HTML file; and two compared."""
