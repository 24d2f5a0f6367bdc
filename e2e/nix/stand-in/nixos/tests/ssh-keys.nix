pkgs: {
  snakeOilEd25519PrivateKey = pkgs.writeText "privkey" "";
  snakeOilEd25519PublicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIC+UmpfPSo+pH/RrGYMMNlUDVbsCpWOIu+7uIpAQ8gKz snakeoil";
}
