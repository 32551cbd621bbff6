"""Writers of a profile in other formats, one file a format."""
