"""From a chapter's source to what students get, and to executed pages: release and execution."""
