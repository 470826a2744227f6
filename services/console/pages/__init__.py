"""What an operator sees: facts are read once a second (`board`), made into a view (`view`), drawn (`draw`), shown."""
