"""What the pages share: a document that loads nothing, and figures that follow its colours."""
