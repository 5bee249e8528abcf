"""The networks, one file each, readable top to bottom. They import nothing but `nn` and the configuration."""
