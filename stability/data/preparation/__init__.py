"""Text to token shards: sources, tokenizers, packing, and a folder that goes on where it was left. Imports no JAX.

settings     what a command says
files        finding and opening files, here or remote, compressed or not
hub          data sets through Hugging Face `datasets`
sources      the source cut into units of work
documents    a unit's documents, one after the other
tokenizers   text to ids
bpe          a tokenizer trained on the source
packing      one unit to its files of tokens
folder       what is done, what is not, and whose folder it is
preparing    all of it: `prepare`
"""
