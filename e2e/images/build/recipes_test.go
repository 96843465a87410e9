package build

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/outrigger-mesh/outrigger/e2e/images/oci"
)

// unpack writes the parts of an image, but for Go's programs, below a folder,
// and returns that.
func unpack(t *testing.T, parts ...func(context.Context, *builder) ([]oci.File, error)) string {
	t.Helper()
	root := t.TempDir()
	for _, part := range parts {
		files, err := part(t.Context(), &builder{Config: Config{Arch: runtime.GOARCH}})
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			place(t, root, file)
		}
	}
	return root
}

func place(t *testing.T, root string, file oci.File) {
	t.Helper()
	target := filepath.Join(root, file.Path)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	switch {
	case file.Dir:
		err = os.MkdirAll(target, 0o755)
	case file.Link != "":
		err = os.Symlink(file.Link, target)
	case file.Source != "":
		var data []byte
		if data, err = os.ReadFile(file.Source); err == nil {
			err = os.WriteFile(target, data, 0o755)
		}
	default:
		err = os.WriteFile(target, file.Data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// execute runs a program of an unpacked image with the dynamic linker and the
// libraries of that image only, which needs no privilege, unlike chroot.
func execute(t *testing.T, root string, args ...string) string {
	t.Helper()
	linkers, err := filepath.Glob(filepath.Join(root, "lib*", "ld-linux*"))
	if err != nil || len(linkers) != 1 {
		t.Fatalf("dynamic linkers in the image: %v, %v; want one", linkers, err)
	}
	libraries, err := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-gnu"))
	if err != nil || len(libraries) != 1 {
		t.Fatalf("library folders in the image: %v, %v; want one", libraries, err)
	}
	linker := []string{"--inhibit-cache", "--library-path", libraries[0], "--argv0", path.Base(args[0]), filepath.Join(root, args[0])}
	cmd := exec.CommandContext(t.Context(), linkers[0], append(linker, args[1:]...)...)
	cmd.Env = []string{"XTABLES_LIBDIR=" + filepath.Join(libraries[0], "xtables")}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("run %v of the image: %v\n%s", args, err, out)
	}
	// Whatever the linker mapped from elsewhere, the image would lack.
	list := exec.CommandContext(t.Context(), linkers[0], append([]string{"--list"}, linker[:3]...)...)
	list.Args = append(list.Args, filepath.Join(root, args[0]))
	mapped, err := list.CombinedOutput()
	if err != nil {
		t.Errorf("list libraries of %s: %v\n%s", args[0], err, mapped)
	}
	for line := range strings.Lines(string(mapped)) {
		if _, file, ok := strings.Cut(line, "=> "); ok && !strings.HasPrefix(file, root) {
			t.Errorf("%s uses a library that is not in the image: %s", args[0], line)
		}
	}
	return string(out)
}

func TestEnvoyStartsInItsImage(t *testing.T) {
	root := unpack(t, proxyBase, envoy)
	if out := execute(t, root, "usr/local/bin/envoy", "--version"); !strings.Contains(out, "version:") {
		t.Errorf("envoy --version: %s", out)
	}
	passwd, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil || !bytes.Contains(passwd, []byte("outrigger:x:1500:1500:")) {
		t.Errorf("passwd: %s, %v; want the user outrigger", passwd, err)
	}
	err = filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if base := entry.Name(); base == "sh" || base == "bash" || base == "busybox" {
			t.Errorf("the proxy image holds a shell: %s", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestIptablesStartsInItsImage(t *testing.T) {
	root := unpack(t, iptables)
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, flavour := range []string{"nft", "legacy"} {
			command := "usr/sbin/" + family + "-" + flavour
			for _, name := range []string{command, command + "-restore", command + "-save"} {
				if out := execute(t, root, name, "--version"); !strings.Contains(out, "v1.") {
					t.Errorf("%s --version: %s", name, out)
				}
			}
			// Help for an extension is its own text: the plug-in was loaded.
			for extension, word := range map[string]string{"owner": "--uid-owner", "multiport": "--dports", "comment": "--comment"} {
				if out := execute(t, root, command, "-m", extension, "--help"); !strings.Contains(out, word) {
					t.Errorf("%s: extension %s is missing:\n%s", command, extension, out)
				}
			}
			if out := execute(t, root, command, "-j", "REDIRECT", "--help"); !strings.Contains(out, "--to-ports") {
				t.Errorf("%s: target REDIRECT is missing:\n%s", command, out)
			}
		}
	}
}

func TestDatabasesStartInTheirImage(t *testing.T) {
	root := unpack(t, databases)
	for _, program := range []string{"usr/lib/postgresql/*/bin/postgres", "usr/lib/postgresql/*/bin/psql", "usr/sbin/mariadbd", "usr/bin/mariadb"} {
		found, err := filepath.Glob(filepath.Join(root, program))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v, %v; want one file", program, found, err)
		}
		relative, err := filepath.Rel(root, found[0])
		if err != nil {
			t.Fatal(err)
		}
		if out := execute(t, root, relative, "--version"); !strings.Contains(out, "PostgreSQL") && !strings.Contains(out, "MariaDB") {
			t.Errorf("%s --version: %s", program, out)
		}
	}
}

// TestZooKeeperHasAJavaRuntime looks for what Java finds by its place, which the
// dynamic linker alone would not need.
func TestZooKeeperHasAJavaRuntime(t *testing.T) {
	root := unpack(t, zooKeeper)
	for _, file := range []string{
		"usr/lib/jvm/java-*/bin/java", "usr/lib/jvm/java-*/lib/modules", "usr/lib/jvm/java-*/lib/server/libjvm.so",
		"usr/lib/jvm/java-*/conf/security/java.security", "usr/share/java/zookeeper.jar", "usr/share/java/slf4j-simple.jar",
	} {
		found, err := filepath.Glob(filepath.Join(root, file))
		if err != nil || len(found) != 1 {
			t.Errorf("%s: %v, %v; want one file", file, found, err)
		}
	}
}

func TestClientHasItsTools(t *testing.T) {
	root := unpack(t, tools)
	if out := execute(t, root, "usr/bin/curl", "--version"); !strings.Contains(out, "HTTP2") {
		t.Errorf("curl --version: %s; want one that speaks HTTP/2", out)
	}
	// Busybox is static and is told what to be by its first argument.
	for _, args := range [][]string{{"sh", "-c", "exit 0"}, {"nc", "--help"}, {"timeout", "1", "true"}} {
		out, err := exec.CommandContext(t.Context(), filepath.Join(root, "usr/bin/busybox"), args...).CombinedOutput()
		if err != nil {
			t.Errorf("busybox %v: %v\n%s", args, err, out)
		}
	}
	links, err := os.ReadDir(filepath.Join(root, "bin"))
	if err != nil {
		t.Fatal(err)
	}
	known, err := exec.CommandContext(t.Context(), filepath.Join(root, "usr/bin/busybox"), "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if !strings.Contains("\n"+string(known), "\n"+link.Name()+"\n") {
			t.Errorf("/bin/%s leads to busybox, which does not know that command", link.Name())
		}
	}
}
