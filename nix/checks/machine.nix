# What the machine of the checks runs, before and after: evaluated here, and once more by the controller in its virtual machine, out of a repository. Both
# give the same derivations, so that nothing is built in there.
{ modulesPath, ... }:
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
  documentation.enable = false;
  system.switch.enable = true;
  system.stateVersion = "26.05";
}
