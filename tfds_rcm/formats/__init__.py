"""One module a family of files: image folders, TIFF, DICOM, NumPy volumes."""
