"""Contacts between residues, from engines that give them."""
