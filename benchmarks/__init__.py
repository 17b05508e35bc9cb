"""Speed against named alternatives, with equality of results checked."""
