{
  environment.etc.revision.text = "kernel";
  boot.kernelParams = [ "nhc.revision=kernel" ];
}
