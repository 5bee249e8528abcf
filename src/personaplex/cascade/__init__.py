"""The cascade: any recogniser, any language model, any voice, streaming from one to the next behind the seam."""
