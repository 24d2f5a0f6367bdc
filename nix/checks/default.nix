# The whole way on real NixOS: a control plane, the controller as a service beside it, and a machine that boots with systemd-boot.
{ pkgs, self }:
let
  inherit (pkgs) lib;
  inherit (self.inputs) nixpkgs;
  inherit (pkgs.stdenv.hostPlatform) system;

  keys = import "${nixpkgs}/nixos/tests/ssh-keys.nix" pkgs;
  login.services.nixos-host.authorizedKeys = [ keys.snakeOilEd25519PublicKey ];

  # What the controller evaluates in its virtual machine
  repository =
    revision:
    pkgs.linkFarm "repository" {
      "flake.nix" = pkgs.writeText "flake.nix" ''
        {
          inputs.nixpkgs = { url = "path:${nixpkgs}"; flake = false; };
          outputs = { nixpkgs, ... }: {
            nixosConfigurations.machine = import "''${nixpkgs}/nixos/lib/eval-config.nix" {
              system = "${system}";
              modules = [ ./machine.nix ./host.nix ./login.nix ./revision.nix ];
            };
          };
        }
      '';
      "machine.nix" = ./machine.nix;
      "host.nix" = ../modules/host.nix;
      "login.nix" = pkgs.writeText "login.nix" (lib.generators.toPretty { } login);
      "revision.nix" = revision;
    };

  # The same system: it is in the controller's store then
  evaluated =
    revision:
    (import "${nixpkgs}/nixos/lib/eval-config.nix" {
      inherit system;
      modules = [
        ./machine.nix
        ../modules/host.nix
        login
        revision
      ];
    }).config.system.build.toplevel;

  revisions = {
    good = ./revisions/good.nix;
    next = ./revisions/next.nix;
    broken = ./revisions/broken.nix;
    kernel = ./revisions/kernel.nix;
  };

  resource = pkgs.writeText "machine.json" (
    builtins.toJSON {
      apiVersion = "nixoshost.dev/v1alpha1";
      kind = "NixOSHost";
      metadata = {
        name = "machine";
        namespace = "default";
      };
      spec = {
        flake.url = "git+file:///srv/fleet";
        connection = {
          addresses = [ "192.168.1.2" ];
          user = "deploy";
          sshKeyRef.name = "fleet-ssh";
          hostKeyPolicy = "TrustOnFirstUse";
        };
        activation.reboot = "IfRequired";
        interval = "10s";
      };
    }
  );

  # How the story goes on, once the machine runs `good`
  test =
    name: story:
    pkgs.testers.runNixOSTest {
      inherit name;

      nodes.control = {
        imports = [ self.nixosModules.controller ];
        services.k3s = {
          enable = true;
          role = "server";
          extraFlags = [ "--disable-agent" ];
        };
        services.nixos-host-controller = {
          enable = true;
          kubeconfig = "/etc/rancher/k3s/k3s.yaml";
          settings.allow-local-flakes = true;
        };
        environment.variables.KUBECONFIG = "/etc/rancher/k3s/k3s.yaml";
        programs.git = {
          enable = true;
          config.safe.directory = "/srv/fleet";
        };
        virtualisation = {
          cores = 2;
          memorySize = 6144;
          diskSize = 8192;
          writableStore = true;
          additionalPaths = [
            "${nixpkgs}"
          ]
          ++ map evaluated (lib.attrValues revisions);
        };
        nix.settings.substituters = lib.mkForce [ ];
      };

      nodes.machine = {
        imports = [
          self.nixosModules.host
          login
        ];
        services.nixos-host.enable = true;
        # Machines of tests are not switched otherwise
        system.switch.enable = true;
        boot.loader.systemd-boot.enable = true;
        boot.loader.efi.canTouchEfiVariables = true;
        virtualisation = {
          useBootLoader = true;
          useEFIBoot = true;
          memorySize = 2048;
          diskSize = 8192;
          fileSystems."/".autoResize = true;
        };
        # The image is as large as what is in it: the rest is for what lands
        boot.growPartition = true;
        nix.settings.substituters = lib.mkForce [ ];
      };

      testScript = ''
        def commit(files):
            control.succeed(
                f"mkdir -p /srv/fleet && cp -L {files}/* /srv/fleet && cd /srv/fleet && git init -q -b main . && "
                "nix --extra-experimental-features 'nix-command flakes' flake lock --offline path:/srv/fleet && git add -A && "
                "git -c user.name=test -c user.email=test@example.org commit -qm revision"
            )

        def becomes(condition, reason, timeout=600):
            control.wait_until_succeeds(
                "kubectl get nixoshost machine -o "
                f"jsonpath='{{.status.conditions[?(@.type==\"{condition}\")].reason}}' | grep -qx {reason}",
                timeout=timeout,
            )

        def reboots():
            # QEMU runs with -no-reboot, so that one ends it; the disk and the EFI variables stay
            machine.wait_for_shutdown()
            machine.start()
            machine.wait_for_unit("sshd.service")

        def runs(revision):
            machine.wait_until_succeeds(f"grep -qx {revision} /etc/revision", timeout=600)
            becomes("Ready", "Succeeded")
            machine.succeed("test $(readlink -f /run/current-system) = $(readlink -f /nix/var/nix/profiles/system)")

        start_all()
        machine.wait_for_unit("sshd.service")
        control.wait_for_unit("k3s.service")
        control.wait_until_succeeds("kubectl get --raw /readyz")
        control.succeed("kubectl apply --server-side -f ${../../crd/manifests/nixoshosts.yaml}")
        control.succeed("kubectl create secret generic fleet-ssh --from-file=ssh-privatekey=${keys.snakeOilEd25519PrivateKey}")
        commit("${repository revisions.good}")
        control.wait_for_unit("nixos-host-controller.service")
        control.succeed("kubectl apply -f ${resource}")
        # What the framework put into the machine's first initrd is in no revision
        reboots()
        runs("good")
        ${story}
      '';
    };
in
{
  # A commit is applied, by a switch
  apply = test "apply" ''
    before = machine.succeed("cat /proc/sys/kernel/random/boot_id")
    commit("${repository revisions.next}")
    runs("next")
    machine.wait_until_succeeds("systemctl is-system-running", timeout=120)
    assert machine.succeed("cat /proc/sys/kernel/random/boot_id") == before
  '';

  # One whose activation fails is taken back
  revert = test "revert" ''
    commit("${repository revisions.broken}")
    becomes("Ready", "ActivationFailed")
    machine.succeed("grep -qx good /etc/revision")
    control.succeed("kubectl get nixoshost machine -o json | grep 'cannot migrate the database' >/dev/null")
  '';

  # One with other kernel parameters is booted once, and then kept
  reboot = test "reboot" ''
    before = machine.succeed("cat /proc/sys/kernel/random/boot_id")
    commit("${repository revisions.kernel}")
    reboots()
    machine.succeed("grep -q nhc.revision=kernel /proc/cmdline")
    runs("kernel")
    assert machine.succeed("cat /proc/sys/kernel/random/boot_id") != before
  '';
}
