"""Where an index is searched: in memory, in Milvus, in PostgreSQL."""
