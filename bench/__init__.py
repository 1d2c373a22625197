# SPDX-License-Identifier: Apache-2.0
"""What is measured: ratios of things that were run side by side."""
