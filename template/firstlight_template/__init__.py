"""What the template needs besides files to copy: checks of the answers and the packing of firstlight."""
