package build

import (
	"context"
	"path"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/outrigger-mesh/outrigger/e2e/envoybin"
	"github.com/outrigger-mesh/outrigger/e2e/images/debian"
	"github.com/outrigger-mesh/outrigger/e2e/images/oci"
)

// searchPath is where other programs than ours lie in our images: Envoy is where
// its own image has it.
const searchPath = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// nobody is the user of images that need no user of their own. It must not be
// 1500, which is the proxy's: the redirect rules let that user's traffic pass.
const nobody = "65532:65532"

// A recipe says what an image is made of.
type recipe struct {
	name   string
	config v1.Config
	parts  []part // lowest first: what changes least is first
}

// A part becomes one layer.
type part struct {
	name  string
	files func(context.Context, *builder) ([]oci.File, error)
}

func recipes() []recipe {
	return []recipe{
		{
			name:   "outriggerd",
			config: v1.Config{User: nobody, Entrypoint: []string{"/outriggerd"}},
			parts:  []part{program("./cmd/outriggerd")},
		},
		{
			name: "outrigger-init",
			config: v1.Config{
				User:       "0:0",
				Entrypoint: []string{"/outrigger-init"},
				// Legacy iptables wants to lock a file in /run, which a
				// read-only root refuses. Every pod has /dev/shm, and
				// nobody to share the lock with.
				Env: []string{searchPath, "XTABLES_LOCKFILE=/dev/shm/xtables.lock"},
			},
			parts: []part{{"iptables", iptables}, program("./cmd/outrigger-init")},
		},
		{
			name: "outrigger-proxy",
			config: v1.Config{
				User:       "1500:1500",
				Entrypoint: []string{"/outrigger-agent"},
				Env:        []string{searchPath},
			},
			parts: []part{{"base", proxyBase}, {"envoy", envoy}, program("./cmd/outrigger-agent")},
		},
		{
			name:   "bookstore",
			config: v1.Config{User: nobody, Entrypoint: []string{"/bookstore"}, Env: []string{searchPath}},
			parts:  []part{program("./e2e/bookstore")},
		},
		{
			// A pod of this image waits until it is told to stop; tests run
			// curl, a shell or the bookstore's commands in it.
			name:   "client",
			config: v1.Config{User: nobody, Cmd: []string{"/bookstore", "wait"}, Env: []string{searchPath}},
			parts:  []part{{"tools", tools}, program("./e2e/bookstore")},
		},
		{
			name:   "databases",
			config: v1.Config{User: nobody, Env: []string{searchPath}},
			parts:  []part{{"servers", databases}, {"shell", shell}},
		},
		{
			name:   "zookeeper",
			config: v1.Config{User: nobody, Entrypoint: []string{"/zookeeper"}, Env: []string{searchPath}},
			parts:  []part{{"server", zooKeeper}, {"shell", shell}},
		},
	}
}

// program is a part that holds one Go program of this module.
func program(pkg string) part {
	return part{path.Base(pkg), func(ctx context.Context, b *builder) ([]oci.File, error) {
		file, err := b.program(ctx, pkg)
		return []oci.File{file}, err
	}}
}

// envoyPath returns Envoy for the builder's architecture.
func envoyPath(ctx context.Context, b *builder) (string, error) {
	if b.Arch == runtime.GOARCH {
		return envoybin.EnvoyBinary(ctx)
	}
	return envoybin.Fetch(ctx, b.Arch)
}

func envoy(ctx context.Context, b *builder) ([]oci.File, error) {
	binary, err := envoyPath(ctx, b)
	return []oci.File{{Path: "usr/local/bin/envoy", Source: binary, Mode: 0o755}}, err
}

// proxyBase is what Envoy needs to start, and names for its user.
func proxyBase(ctx context.Context, b *builder) ([]oci.File, error) {
	binary, err := envoyPath(ctx, b)
	if err != nil {
		return nil, err
	}
	tree, err := debian.Unpack(ctx, b.Arch, "libc6")
	if err != nil {
		return nil, err
	}
	libraries, err := tree.Files(nil, []string{binary})
	return append(libraries,
		text("etc/passwd", "root:x:0:0:root:/:/nonexistent\noutrigger:x:1500:1500:Outrigger:/:/nonexistent\n"),
		text("etc/group", "root:x:0:\noutrigger:x:1500:\n"),
		nameServices(),
	), err
}

// iptables is both flavours of iptables, since the kernel of a node decides
// which one works, with the extensions that our rules use.
func iptables(ctx context.Context, b *builder) ([]oci.File, error) {
	tree, err := debian.Unpack(ctx, b.Arch, "iptables")
	if err != nil {
		return nil, err
	}
	patterns := []string{"usr/sbin/xtables-nft-multi", "usr/sbin/xtables-legacy-multi"}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, flavour := range []string{"nft", "legacy"} {
			command := "usr/sbin/" + family + "-" + flavour
			patterns = append(patterns, command, command+"-restore", command+"-save")
		}
	}
	// NAT holds REDIRECT, which is a link to it.
	for _, extension := range []string{
		"standard", "tcp", "udp", "multiport", "owner", "comment", "addrtype", "conntrack", "mark", "NAT", "REDIRECT",
	} {
		patterns = append(patterns, tree.LibraryDir()+"/xtables/libxt_"+extension+".so")
	}
	files, err := tree.Files(patterns, nil)
	return append(files, nameServices()), err
}

// tools is curl and a shell with the usual commands.
func tools(ctx context.Context, b *builder) ([]oci.File, error) {
	tree, err := debian.Unpack(ctx, b.Arch, "curl")
	if err != nil {
		return nil, err
	}
	files, err := tree.Files([]string{"usr/bin/curl"}, nil)
	if err != nil {
		return nil, err
	}
	commands, err := shell(ctx, b)
	return append(files, commands...), err
}

// shell is a shell with the usual commands.
func shell(ctx context.Context, b *builder) ([]oci.File, error) {
	tree, err := debian.Unpack(ctx, b.Arch, "busybox-static")
	if err != nil {
		return nil, err
	}
	files, err := tree.Files([]string{"usr/bin/busybox"}, nil)
	for _, command := range []string{
		"awk", "cat", "cut", "date", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "ip", "kill", "ls",
		"mkdir", "mktemp", "nc", "netstat", "nslookup", "od", "ping", "printf", "ps", "rm", "sed", "seq", "sh", "sleep", "sort",
		"stat", "tail", "tee", "test", "timeout", "touch", "tr", "true", "uniq", "wc", "wget", "xargs",
	} {
		files = append(files, oci.File{Path: "bin/" + command, Link: "/usr/bin/busybox"})
	}
	return append(files, oci.File{Path: "tmp", Dir: true, Mode: 0o777}, nameServices()), err
}

// nameServices tells the C library to ask /etc/hosts before DNS.
func nameServices() oci.File { return text("etc/nsswitch.conf", "hosts: files dns\n") }

func text(name, content string) oci.File { return oci.File{Path: name, Data: []byte(content)} }
