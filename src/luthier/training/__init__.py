"""What SFT and DPO share: TRL's trainer with our loss, batches and sealed checkpoints."""
