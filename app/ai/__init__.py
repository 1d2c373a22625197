# SPDX-License-Identifier: Apache-2.0
"""Language models: who they are, what they are asked, what they may say. Knows neither database nor web."""
