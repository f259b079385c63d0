"""From results and verdicts to tables, figures and the page."""
