// Executes chat templates as Ollama does (template/template.go, Execute, for a template that names
// .Messages): neighbours of one role become one message, system messages are also joined in
// .System. Reads {"templates": [...], "conversations": [[{"Role", "Content"}]]} and writes, for
// each template, the prompt of each conversation.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role, Content, Thinking string
	Images                  [][]byte
	ToolCalls               []any
	ToolName, ToolCallID    string
}

func values(messages []message) map[string]any {
	var system []string
	var joined []*message
	for _, one := range messages {
		if one.Role == "system" {
			system = append(system, one.Content)
		}
		if last := len(joined) - 1; last >= 0 && joined[last].Role == one.Role {
			joined[last].Content += "\n\n" + one.Content
			continue
		}
		copied := one
		joined = append(joined, &copied)
	}
	return map[string]any{
		"System": strings.Join(system, "\n\n"), "Messages": joined, "Tools": []any(nil),
		"Response": "", "Think": false, "ThinkLevel": "", "IsThinkSet": false,
	}
}

func main() {
	var input struct {
		Templates     []string
		Conversations [][]message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		log.Fatal(err)
	}
	prompts := [][]string{}
	for _, text := range input.Templates {
		parsed, err := template.New("").Option("missingkey=zero").Parse(text)
		if err != nil {
			log.Fatal(err)
		}
		var row []string
		for _, conversation := range input.Conversations {
			var prompt strings.Builder
			if err := parsed.Execute(&prompt, values(conversation)); err != nil {
				log.Fatal(err)
			}
			row = append(row, prompt.String())
		}
		prompts = append(prompts, row)
	}
	if err := json.NewEncoder(os.Stdout).Encode(prompts); err != nil {
		log.Fatal(err)
	}
}
