# nixosSystem in small: the toplevel that NixOS builds, as far as anything outside of it can tell, out of one static busybox.
# What each knob does to a host is in fleet.json's schema: e2e/src/flake/fleet.rs.
{
  busyboxFile,
  salt,
  inputText,
}:
let
  range = builtins.genList (i: i);

  # Not salted, like the scripts and the kernel: a fresh host has these already.
  busyboxFor =
    system:
    derivation {
      name = "busybox";
      inherit system;
      builder = busyboxFile;
      args = [
        "sh"
        "-euc"
        ''
          ${busyboxFile} mkdir -p $out/bin
          ${busyboxFile} cp ${busyboxFile} $out/bin/busybox
          cd $out/bin
          for applet in $(./busybox --list); do [ $applet = busybox ] || ./busybox ln -s busybox $applet; done
        ''
      ];
    };

  scripts = {
    switchToConfiguration = ./switch-to-configuration.sh;
    activate = ./activate.sh;
    init = ./init.sh;
    extlinuxConfBuilder = ./extlinux-conf-builder.sh;
    systemdBootBuilder = ./systemd-boot-builder.sh;
    grubBuilder = ./grub-builder.sh;
    bootctl = ./bootctl.sh;
  };

  errors = {
    throw = throw "this configuration throws on purpose";
    assertion = throw "\nFailed assertions:\n- web needs a certificate";
    type = builtins.length "not a list";
    missing-attribute = { }.services.nothing;
    abort = abort "this configuration aborts on purpose";
    recursion =
      let
        loop = loop + 1;
      in
      loop;
  };
in
{
  name,
  system ? "x86_64-linux",
  label ? "26.05.20261101.e2e",
  rev ? 0,
  shared ? { },
  own ? { },
  kernel ? { },
  units ? { },
  activation ? { },
  evaluation ? { },
  build ? { },
  bootLoader ? { },
  preSwitchCheck ? "",
  initInterface ? "systemd 2",
}:
let
  busybox = busyboxFor system;

  run =
    derivationName: environment: script:
    derivation (
      {
        inherit system;
        name = derivationName;
        builder = "${busybox}/bin/sh";
        args = [
          "-euc"
          script
        ];
        PATH = "${busybox}/bin";
      }
      // environment
    );
  runSalted = derivationName: environment: run derivationName ({ inherit salt; } // environment);

  # Package i refers to package (i - 1) / 2, so that the closure has depth. The last `changed` of them move with `rev`.
  packages =
    tag:
    {
      count ? 0,
      kib ? 16,
      kind ? "random",
      rev ? 0,
      changed ? count,
    }:
    let
      package =
        i:
        let
          revision = toString (if i >= count - changed then rev else 0);
        in
        runSalted "${tag}-${toString i}-${revision}"
          {
            needs = if i == 0 then "" else "${builtins.elemAt all ((i - 1) / 2)}";
            kib = toString kib;
            source = if kind == "zero" then "/dev/zero" else "/dev/urandom";
          }
          ''
            mkdir -p $out/bin $out/share
            echo "$needs" > $out/share/needs
            dd if=$source of=$out/share/blob bs=1024 count=$kib 2>/dev/null
            printf '#!%s\necho %s\n' "$PATH/sh" "$name" > $out/bin/$name
            chmod +x $out/bin/$name
          '';
      all = map package (range count);
    in
    all;

  # A kernel that boots, where a test has put one beside the flake
  real = kernel.real or false;
  kernelVersion = "6.12.${toString (kernel.rev or 0)}";
  linux = run "linux-${kernelVersion}" { version = kernelVersion; } ''
    mkdir -p $out/lib/modules/$version
    ${if real then "cp ${./machine}/vmlinuz" else "echo \"kernel $version\" >"} $out/bzImage
    echo "$version" > $out/lib/modules/$version/modules.order
  '';
  initrd = run "initrd-linux-${kernelVersion}" { version = kernelVersion; } ''
    mkdir -p $out
    ${if real then "cp ${./machine}/initrd" else "echo \"initrd $version\" >"} $out/initrd
  '';

  # The host's own tools, by name, as a landing finds them on NixOS: never an applet of busybox in front of them.
  hostTools = "nix nix-build nix-collect-garbage nix-env nix-instantiate nix-store systemctl systemd-run journalctl flock timeout";
  systemPath =
    runSalted "system-path"
      {
        inherit hostTools;
        # A stand-in, where the real one would refuse to run: in a container
        bootctl = if real then "" else scripts.bootctl;
        packages = packages "shared" shared ++ packages "own-${name}" own;
      }
      ''
        mkdir -p $out/bin
        for package in $packages; do ln -s $package/bin/* $out/bin/; done
        for tool in $hostTools; do ln -s /usr/bin/$tool $out/bin/$tool; done
        if [ -z "$bootctl" ]; then ln -s /usr/bin/bootctl $out/bin/bootctl; exit; fi
        sed -e "s|@sh@|$PATH/sh|g" -e "s|@tools@|$PATH|g" $bootctl > $out/bin/bootctl
        chmod +x $out/bin/bootctl
      '';

  unitFile =
    unit: text:
    runSalted "unit-${unit}"
      {
        inherit text unit;
        passAsFile = [ "text" ];
      }
      ''
        mkdir -p $out
        cp $textPath $out/$unit
      '';

  etc =
    runSalted "etc"
      {
        inherit label inputText;
        hostName = name;
        rev = toString rev;
        unitFiles = builtins.attrValues (builtins.mapAttrs unitFile units);
      }
      ''
        wants=$out/etc/systemd/system/multi-user.target.wants
        mkdir -p $wants
        echo "$hostName" > $out/etc/hostname
        printf 'NAME=NixOS\nID=nixos\nVERSION_ID="%s"\nPRETTY_NAME="NixOS %s"\n' "''${label%%.20*}" "$label" > $out/etc/os-release
        echo "$rev" > $out/etc/revision
        printf '%s' "$inputText" > $out/etc/input-text
        for file in $unitFiles; do
          ln -s $file/* $out/etc/systemd/system/
          for unit in $file/*; do ln -s ../''${unit##*/} $wants/; done
        done
      '';

  # What a build does besides: fails after 40 lines, or takes its time
  trial = runSalted "trial-${name}" {
    fail = if build.fail or false then "1" else "";
    seconds = toString (build.sleep or 0);
    rev = toString rev;
  } ''
    i=0
    while [ $i -lt $seconds ]; do i=$((i + 1)); echo "second $i of $seconds"; sleep 1; done
    if [ -n "$fail" ]; then
      i=0
      while [ $i -lt 40 ]; do i=$((i + 1)); echo "line $i of 40: compiling something that does not compile" >&2; done
      exit 7
    fi
    echo ok > $out
  '';
  trials = if build.fail or false || build.sleep or 0 > 0 then trial else "";

  # A derivation that has to be built to know what the configuration says
  importedLabel =
    if evaluation.importFromDerivation or false then
      builtins.readFile (runSalted "label" { inherit label; } ''printf '%s' "$label" > $out'')
    else
      label;

  # Strings are made whole, so that this cannot be collected meanwhile
  kibibyte = builtins.concatStringsSep "" (map (_: "x") (range 1024));
  large = builtins.stringLength (builtins.concatStringsSep "" (map (_: kibibyte) (range (1024 * (evaluation.memory or 0)))));
  spin = builtins.foldl' (sum: i: builtins.foldl' (a: b: a + b) sum (range 1000)) 0 (range (evaluation.spin or 0));

  toplevelDerivation =
    runSalted "nixos-system-${name}-${importedLabel}"
      {
        inherit label initInterface preSwitchCheck trials initrd etc;
        inherit (scripts)
          switchToConfiguration
          activate
          init
          extlinuxConfBuilder
          systemdBootBuilder
          grubBuilder
          ;
        kernel = linux;
        kernelParams = (kernel.params or "loglevel=4") + (if kernel.panics or false then " panic-at-once" else "");
        installBootLoader = if bootLoader.fail or false then "false" else bootLoader.kind or "extlinux";
        hostName = name;
        snippets = builtins.concatStringsSep "\n" (
          builtins.attrValues (builtins.mapAttrs (snippet: text: "snippet ${snippet} <<'SNIPPET'\n${text}\nSNIPPET") activation)
        );
        sw = systemPath;
        passAsFile = [ "snippets" ];
      }
      ''
        mkdir -p $out/bin
        ln -s $kernel/bzImage $out/kernel
        ln -s $kernel $out/kernel-modules
        ln -s $initrd/initrd $out/initrd
        ln -s $sw $out/sw
        ln -s $etc/etc $out/etc
        printf '%s' "$label" > $out/nixos-version
        printf '%s' "$system" > $out/system
        printf '%s' "$kernelParams" > $out/kernel-params
        printf '%s' "$initInterface" > $out/init-interface-version
        install_script() {
          sed -e "/@snippets@/{r $snippetsPath" -e 'd}' -e "s|@sh@|$PATH/sh|g" -e "s|@tools@|$PATH|g" -e "s|@out@|$out|g" \
            -e "s|@installBootLoader@|$installBootLoader|g" -e "s|@extlinuxConfBuilder@|$extlinuxConfBuilder|g" \
            -e "s|@systemdBootBuilder@|$systemdBootBuilder|g" -e "s|@grubBuilder@|$grubBuilder|g" "$1" > "$2"
          chmod +x "$2"
        }
        install_script $switchToConfiguration $out/bin/switch-to-configuration
        install_script $activate $out/activate
        install_script $init $out/init
        printf '#!%s\n%s\n' "$PATH/sh" "$preSwitchCheck" > $out/pre-switch-check
        chmod +x $out/pre-switch-check
        cat > $out/boot.json <<JSON
        {"org.nixos.bootspec.v1":{"init":"$out/init","initrd":"$out/initrd","kernel":"$out/kernel","kernelParams":["$kernelParams"],"label":"NixOS $label","system":"$system","toplevel":"$out"}}
        JSON
      '';

  toplevel = builtins.seq (spin + large) (if evaluation ? error then errors.${evaluation.error} else toplevelDerivation);
in
if evaluation.notASystem or false then
  { hello = "this is no NixOS system"; }
else
  {
    _type = "configuration";
    options = { };
    config = {
      boot.kernelPackages.kernel.version = kernelVersion;
      networking.hostName = name;
      nixpkgs.hostPlatform.system = system;
      system = {
        inherit name;
        build = { inherit toplevel; };
        nixos = {
          inherit label;
          version = label;
        };
      };
    };
  }
