# SPDX-License-Identifier: GPL-2.0
# Sphinx without the extensions of the kernel tree, none of which the documentation needs.
project = "guest_memfd in Rust"
root_doc = "index"
html_theme = "alabaster"
