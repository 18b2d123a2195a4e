# SPDX-License-Identifier: MIT
"""Views: augmentation keys, crops of tensors, views made on the training device."""
