// Command images builds Outrigger's container images and those of its demo,
// without a container engine.
//
//	go run ./e2e/images                          archives of all images, for the local cluster
//	go run ./e2e/images --only bookstore,client  some of them
//	go run ./e2e/images --push HOST/PROJECT      into a registry of yours
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"

	"github.com/outrigger-mesh/outrigger/e2e/images/build"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		stop()
		os.Exit(1)
	}
}

func command() *cobra.Command {
	cfg := build.Config{Log: logr.FromSlogHandler(slog.NewTextHandler(os.Stderr, nil))}
	var only []string
	var push string
	cmd := &cobra.Command{
		Use:          "images",
		Short:        "Build Outrigger's container images: " + strings.Join(build.Names(), ", "),
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			deliver := build.Build
			if push != "" {
				cfg.Prefix, deliver = push, build.Push
			}
			images, err := deliver(cmd.Context(), cfg, only...)
			if err != nil {
				return err
			}
			for _, image := range images {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), strings.TrimSpace(image.Reference+" "+image.Archive)); err != nil {
					return err
				}
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&only, "only", nil, "names of the images to build; all where not given")
	flags.StringVar(&cfg.Out, "out", "", "folder for the archives; one in the user's cache folder where not given; not used with --push")
	flags.StringVar(&push, "push", "", "push to this registry and path instead of writing archives")
	flags.StringVar(&cfg.Prefix, "prefix", build.DefaultPrefix, "what the images' names begin with in archives")
	flags.StringVar(&cfg.Tag, "tag", build.DefaultTag, "tag of the images")
	flags.StringVar(&cfg.Version, "version", "", "version that the programs report; the tag where not given")
	flags.StringVar(&cfg.Arch, "arch", "", "architecture, amd64 or arm64; this machine's where not given")
	cmd.MarkFlagsMutuallyExclusive("push", "prefix")
	return cmd
}
