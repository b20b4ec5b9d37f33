"""What models are made of: backbones that timm lacks, decoders, context and alignment modules, sampling."""
