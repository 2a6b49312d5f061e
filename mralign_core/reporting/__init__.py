"""Everything made to be looked at: the report's page, figures, and findings in words and tables."""
