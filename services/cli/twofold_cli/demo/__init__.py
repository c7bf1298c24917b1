"""The main job, shown: a conversation through all three services, and transcripts through memory."""
