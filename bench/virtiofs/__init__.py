"""virtio-fs servers side by side: one front-end, the same requests, ours and virtiofsd."""
