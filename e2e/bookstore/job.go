package main

import (
	"encoding/json"

	"github.com/spf13/cobra"
)

func jobCommand() *cobra.Command {
	var q request
	cmd := &cobra.Command{
		Use:   "job",
		Short: "Send one request, print a line of JSON, and end with status 0 if the answer is 2xx, or else 1",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			caller, err := q.caller(false, 1)
			if err != nil {
				return err
			}
			defer caller.close()
			r := caller.call(cmd.Context())
			line := Line{Time: now(), Status: r.Status, Identity: r.Identity, Refusal: r.Refusal}
			if r.Err != nil {
				line.Error = r.Err.Error()
			}
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(line); err != nil {
				return err
			}
			if !r.good() {
				return errNotAsWished
			}
			return nil
		},
	}
	q.flags(cmd)
	return cmd
}
