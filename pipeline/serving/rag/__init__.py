"""Answers from documents: the server's collections, and chat requests that use one."""
