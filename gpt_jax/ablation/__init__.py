"""Ablation studies: arms × seeds from one file, paired and matched, with statistics that can be believed."""
