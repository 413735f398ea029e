"""Where an index is searched: in memory, or in Milvus."""
