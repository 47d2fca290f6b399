"""Who is asked: victims, and what may stand between them and who asks."""
