# What the machine of the checks runs, before and after: evaluated here, and once more by the controller in its virtual machine, out of a repository. Both
# give the same derivations, so that nothing is built in there.
{ lib, modulesPath, ... }:
{
  imports = [
    (modulesPath + "/virtualisation/qemu-vm.nix")
    (modulesPath + "/testing/test-instrumentation.nix")
  ];

  services.nixos-host.enable = true;

  boot.loader.systemd-boot.enable = true;
  boot.loader.efi.canTouchEfiVariables = true;
  virtualisation.useBootLoader = true;
  virtualisation.useEFIBoot = true;

  networking.hostName = "machine";
  networking.useDHCP = false;
  networking.interfaces.eth1.ipv4.addresses = [
    {
      address = "192.168.1.2";
      prefixLength = 24;
    }
  ];
  # As the framework names the interface of the first machine: by the address of the second node in the first network
  boot.initrd.services.udev.rules = ''
    SUBSYSTEM=="net",ACTION=="add",ATTR{address}=="52:54:00:12:01:02",NAME="eth1"
  '';
  # There is no network beyond the two
  nix.settings.substituters = lib.mkForce [ ];
  documentation.enable = false;
  system.switch.enable = true;
  system.stateVersion = "26.05";
}
