"""From documents to rows of questions and answers, by a language model: stage=synthesize."""
