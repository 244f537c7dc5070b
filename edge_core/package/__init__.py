"""The package: its bytes (oci, archive, format), what it says (manifest, golden), and its use."""
