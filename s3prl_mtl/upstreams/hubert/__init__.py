"""HuBERT: configuration, packed encoder, fairseq's checkpoint format."""
