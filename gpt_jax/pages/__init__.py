"""Self-contained HTML pages, drawn from plain records; nothing here knows a study, a run or a model."""
