"""What serving is compared with: programs that run in an environment of their own and import nothing of Ringfence."""
