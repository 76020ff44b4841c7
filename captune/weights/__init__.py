"""Weight files: what is wrong with them is found before and after a library reads them."""
